// Load Layers shows the picture of the chosen file and the names of its layers, and takes a file by a button or by dropping it.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { ENDINGS, LOAD_LAYERS, isLayerFile, upload } from "./layer_files.js";

const TOP = "top";
const ROWS = 4; // names seen at once
const HEIGHT = 250; // pixels of picture and names, at least
const AS_WIDE = { width: "0", minWidth: "100%" }; // as the node, which a large picture or a long name does not widen

function styled(tag, style) {
  const element = document.createElement(tag);
  Object.assign(element.style, style);
  return element;
}

// Names are a stranger's: they go in as text, never as HTML.
function option(value, text) {
  const element = document.createElement("option");
  element.value = value;
  element.textContent = element.title = text;
  return element;
}

class Preview {
  constructor(node) {
    this.node = node;
    this.box = styled("div", { display: "flex", flexDirection: "column", gap: "4px", minHeight: `${HEIGHT}px` });
    this.picture = styled("img", { flex: "1 1 0", minHeight: "0", objectFit: "contain", ...AS_WIDE });
    this.words = styled("div", { flex: "none", fontSize: "11px", textAlign: "center", overflowWrap: "anywhere" });
    this.words.style.cssText += "max-height: 100px; overflow: auto; color: var(--input-text)";
    this.names = styled("select", { flex: "none", fontSize: "12px", border: "none", ...AS_WIDE });
    Object.assign(this.names.style, { background: "var(--comfy-input-bg)", color: "var(--input-text)" });
    this.names.size = ROWS;
    this.names.ariaLabel = "layer";
    this.names.onchange = () => this.choose(this.names.value);
    for (const event of ["wheel", "pointerdown"]) this.names.addEventListener(event, (e) => e.stopPropagation());
    this.box.append(this.picture, this.words, this.names);
  }

  widget(name) {
    return this.node.widgets.find((each) => each.name === name);
  }

  choose(name) {
    const widget = this.widget("layer");
    widget.value = name;
    widget.callback?.(name);
    this.node.graph?.setDirtyCanvas(true, true);
  }

  isWired() {
    return Boolean(this.node.inputs?.some(({ name, link }) => name === "file" && link != null));
  }

  // Asks what the chosen file holds; an answer that comes after the next question is dropped. Of one that comes by a wire
  // nothing is known before the run.
  async update() {
    const file = this.isWired() ? null : this.widget("file").value;
    if (file !== this.file) this.show({}); // not the picture of another file meanwhile
    this.file = file;
    const question = (this.question = Symbol());
    const answer = file ? await ask(file) : {};
    if (question === this.question) this.show(answer);
  }

  show({ layers = [], notes = [], width, height, picture, error }) {
    this.picture.hidden = !picture;
    this.picture.src = picture ?? "";
    this.names.hidden = !layers.length;
    this.names.replaceChildren(option(TOP, "top: the highest visible layer"));
    this.names.append(...layers.filter((name) => name !== TOP).map((name) => option(name, name)));
    const noted = notes.length ? `, ${notes.length} ${notes.length > 1 ? "notes" : "note"}` : "";
    this.about = error ?? (picture ? `${width} x ${height}${noted}` : this.isWired() ? "the file comes by the wire" : "");
    this.words.title = notes.join("\n");
    this.mark();
    this.node.graph?.setDirtyCanvas(true, true);
  }

  // The chosen name in the list, or a word that there is none.
  mark() {
    const name = this.widget("layer").value;
    this.names.value = name;
    const missing = !this.names.hidden && this.names.selectedIndex < 0;
    this.words.textContent = missing ? `${this.about}, no layer is called ${name}` : this.about;
  }
}

async function ask(file) {
  try {
    const answer = await api.fetchApi(`/text2layer/layers?${new URLSearchParams({ file })}`);
    return await answer.json();
  } catch {
    return {}; // no server, or one without the route: the node works as it did without a picture
  }
}

function after(object, method, action) {
  const before = object[method];
  object[method] = function (...values) {
    const result = before?.apply(this, values);
    action();
    return result;
  };
}

function addPreview(node) {
  const preview = new Preview(node);
  const widget = node.addDOMWidget("layers_shown", "text2layer_layers", preview.box, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
  });
  widget.serialize = false;
  after(preview.widget("file"), "callback", () => preview.update());
  after(preview.widget("layer"), "callback", () => preview.mark());
  after(node, "onConfigure", () => preview.update()); // a workflow has been opened
  after(node, "onConnectionsChange", () => preview.update());
  const focused = () => node.graph && preview.update(); // the file may have been saved anew in an editor
  window.addEventListener("focus", focused);
  after(node, "onRemoved", () => window.removeEventListener("focus", focused));
  preview.update();
}

function addUpload(node) {
  const chooser = document.createElement("input");
  Object.assign(chooser, { type: "file", accept: ENDINGS.join(",") });
  chooser.onchange = () => chooser.files.length && upload(chooser.files[0], node);
  const button = node.addWidget("button", "upload .psd or .ora", null, () => chooser.click(), { serialize: false });
  button.serialize = false;
  node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some(({ kind }) => kind === "file");
  node.onDragDrop = (event) => {
    const file = [...event.dataTransfer.files].find(isLayerFile);
    if (!file) return false;
    event.preventDefault();
    event.stopPropagation(); // else the frontend would look for a workflow in it, too
    upload(file, node);
    return true;
  };
}

app.registerExtension({
  name: "text2layer.load_layers",
  nodeCreated(node) {
    if (node.comfyClass !== LOAD_LAYERS || !node.widgets?.some(({ name }) => name === "file")) return;
    addUpload(node);
    addPreview(node);
    node.setSize([Math.max(node.size[0], 300), node.computeSize()[1]]);
  },
});
