// Save Layers fills in %date:...% and %Node.widget% of its prefix, as the frontend does for ComfyUI's own nodes that save.
import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "text2layer.save_layers",
  nodeCreated(node) {
    const widget = node.comfyClass === "T2L_SaveLayers" && node.widgets?.find(({ name }) => name === "filename_prefix");
    const replace = window.comfyAPI?.utils?.applyTextReplacements;
    if (!widget || !replace) return;
    widget.serializeValue = () => (typeof widget.value === "string" ? replace(app, widget.value) : widget.value);
  },
});
