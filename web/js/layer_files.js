// What the other scripts share: which files are ours, putting one into ComfyUI's input folder, and a sentence on the screen.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

export const ENDINGS = [".psd", ".psb", ".ora"];
export const LOAD_LAYERS = "T2L_LoadLayers";

export function isLayerFile(file) {
  return ENDINGS.some((ending) => file.name.toLowerCase().endsWith(ending));
}

export function say(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "Load Layers", detail, life: 12000 });
}

// The file's name as every system can hold it: it is shown in lists, and some of them take "<" for HTML.
function plainName(name) {
  return name.replace(/[\x00-\x1f<>:"|?*\\/]/g, "-").replace(/^\.+/, "");
}

// Puts a file into the input folder and chooses it in a Load Layers node.
export async function upload(file, node) {
  const body = new FormData();
  body.append("image", file, plainName(file.name)); // the route takes files of every kind under this name
  let problem;
  try {
    const answer = await api.fetchApi("/upload/image", { method: "POST", body });
    if (answer.status === 200) return choose((await answer.json()).name, node);
    problem = `${answer.status} ${answer.statusText}`;
  } catch (error) {
    problem = error.message;
  }
  say("error", `${file.name} could not be uploaded: ${problem}`);
}

function choose(name, node) {
  const widget = node.widgets.find((each) => each.name === "file");
  if (!widget.options.values.includes(name)) widget.options.values.push(name);
  widget.value = name;
  widget.callback?.(name);
  node.graph?.setDirtyCanvas(true, true);
}
