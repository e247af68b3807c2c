// A layer file dropped on the canvas becomes a Load Layers node; one that Save Layers wrote brings its workflow back before.
import { app } from "../../../scripts/app.js";
import { LOAD_LAYERS, isLayerFile, say, upload } from "./layer_files.js";
import { storedWorkflow } from "./stored_workflow.js";

const CANVAS = "#graph-canvas, #graph-canvas-container, .graph-canvas-container, [data-node-id]";
const STEP = 40; // pixels between nodes of files dropped together

function nodeUnder(event, [x, y]) {
  const { graph } = app.canvas;
  const element = event.target.closest("[data-node-id]"); // a node that is HTML
  return element ? graph.getNodeById(element.dataset.nodeId) : graph.getNodeOnPos(x, y);
}

// Only our files, only on the canvas, and never over a node that takes files itself: all else stays the frontend's.
function takesDrop(event, place) {
  const files = [...(event.dataTransfer?.files ?? [])];
  if (!files.length || !files.every(isLayerFile) || !event.target.closest?.(CANVAS)) return false;
  return !nodeUnder(event, place)?.onDragDrop;
}

function addNode([x, y]) {
  const node = LiteGraph.createNode(LOAD_LAYERS);
  node.pos = [x, y];
  app.canvas.graph.add(node);
  app.canvas.selectNode?.(node);
  return node;
}

// Where the workflow's nodes end, so that one more lies on none of them.
function belowAll() {
  const nodes = app.canvas.graph.nodes;
  if (!nodes.length) return [0, 0];
  return [Math.min(...nodes.map(({ pos }) => pos[0])), Math.max(...nodes.map(({ pos, size }) => pos[1] + size[1])) + 80];
}

// Opens the file's workflow as the frontend opens that of a PNG: in a tab of its own, and nothing is run. True when it did.
async function openWorkflow(file) {
  try {
    const graph = await storedWorkflow(file);
    if (graph) await app.loadGraphData(graph, true, true, file.name.replace(/\.\w+$/, ""));
    return Boolean(graph);
  } catch (error) {
    say("warn", error.message);
    return false;
  }
}

async function take(files, place, onlyLayers) {
  const opened = files.length === 1 && !onlyLayers && (await openWorkflow(files[0]));
  const start = opened ? belowAll() : place;
  await Promise.all(files.map((file, i) => upload(file, addNode([start[0] + i * STEP, start[1] + i * STEP]))));
  if (!opened) return;
  say("info", `The workflow in ${files[0].name} is open; its layers are in the Load Layers node below it. With the Shift key held while dropping, a file comes without its workflow.`);
}

app.registerExtension({
  name: "text2layer.drop",
  setup() {
    const before = true; // the frontend listens on the same document, and would say that it knows no such file
    document.addEventListener(
      "drop",
      (event) => {
        const place = app.clientPosToCanvasPos([event.clientX, event.clientY]);
        if (!takesDrop(event, place)) return;
        event.preventDefault();
        event.stopImmediatePropagation();
        take([...event.dataTransfer.files], place, event.shiftKey);
      },
      before,
    );
  },
});
