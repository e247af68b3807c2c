// A button on Load Layers that puts a .psd, .psb or .ora file into ComfyUI's input folder, and the same by dropping one.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const ENDINGS = [".psd", ".psb", ".ora"];

function isLayerFile(file) {
  return ENDINGS.some((ending) => file.name.toLowerCase().endsWith(ending));
}

async function upload(file, widget) {
  const body = new FormData();
  body.append("image", file); // the route takes files of every kind under this name
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (answer.status !== 200) {
    app.extensionManager.toast.add({
      severity: "error",
      summary: "Load Layers",
      detail: `${file.name} could not be uploaded: ${answer.status} ${answer.statusText}`,
      life: 8000,
    });
    return;
  }
  const { name } = await answer.json();
  if (!widget.options.values.includes(name)) widget.options.values.push(name);
  widget.value = name;
  widget.callback?.(name);
  app.graph.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "text2layer.load_layers",
  nodeCreated(node) {
    const widget = node.comfyClass === "T2L_LoadLayers" && node.widgets?.find(({ name }) => name === "file");
    if (!widget) return;
    const chooser = document.createElement("input");
    Object.assign(chooser, { type: "file", accept: ENDINGS.join(",") });
    chooser.onchange = () => chooser.files.length && upload(chooser.files[0], widget);
    const button = node.addWidget("button", "upload .psd or .ora", null, () => chooser.click(), { serialize: false });
    button.serialize = false;
    node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some(({ kind }) => kind === "file");
    node.onDragDrop = (event) => {
      const file = [...event.dataTransfer.files].find(isLayerFile);
      if (file) upload(file, widget);
      return Boolean(file);
    };
  },
});
