// A sentence of the server on the node that it is about, until the node runs again.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const EVENT = "text2layer.hint";
const WIDGET = "text2layer_hint";
const STYLE = {
  boxSizing: "border-box",
  width: "100%",
  height: "100%",
  overflow: "auto",
  padding: "4px 8px",
  borderLeft: "3px solid #e0a030",
  font: "12px/1.35 sans-serif",
  color: "var(--input-text, #ddd)",
  background: "var(--comfy-input-bg, #222)",
  userSelect: "text",
};

// A node by the id of its run: "7", or "5:7" for node 7 of the subgraph that is node 5.
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  const path = String(id).split(":");
  const last = path.pop();
  for (const part of path) graph = graph?.getNodeById(part)?.subgraph;
  return graph?.getNodeById(last);
}

function hintOf(node) {
  return node?.widgets?.find(({ name }) => name === WIDGET);
}

function remove(node) {
  const widget = hintOf(node);
  if (!widget) return;
  if (node.removeWidget) node.removeWidget(widget);
  else {
    widget.onRemove?.();
    node.widgets.splice(node.widgets.indexOf(widget), 1);
  }
  if (node.size[1] === widget.grown) node.setSize([node.size[0], widget.before]); // unless somebody has resized it since
  node.setDirtyCanvas(true, true);
}

function show(node, text) {
  const there = hintOf(node);
  if (there) {
    if (!there.element.textContent.includes(text)) there.element.textContent += `\n\n${text}`;
    return;
  }
  const element = document.createElement("div");
  Object.assign(element.style, STYLE, { whiteSpace: "pre-wrap" });
  element.textContent = text; // never HTML: file names are in it
  const height = () => 24 + 18 * Math.ceil(text.length / Math.max(20, node.size[0] / 6.5));
  const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getHeight: height };
  const widget = node.addDOMWidget(WIDGET, "text2layer_hint", element, options);
  widget.serialize = false; // no value of the workflow
  widget.before = node.size[1];
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  widget.grown = node.size[1];
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "text2layer.hints",
  setup() {
    api.addEventListener("executing", ({ detail }) => {
      const id = detail?.node ?? detail;
      if (id) remove(nodeOf(id));
    });
    api.addEventListener(EVENT, ({ detail }) => {
      const node = nodeOf(detail.node);
      if (node) show(node, detail.text);
    });
  },
});
