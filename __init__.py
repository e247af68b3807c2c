"""The entry point of the ComfyUI node pack. ComfyUI is imported inside the function: other programs import this file
too.
"""

WEB_DIRECTORY = "./web"  # help pages, and what Load Layers adds to the frontend


async def comfy_entrypoint():
    """The extension with all nodes, for ComfyUI's loader."""
    import logging

    try:
        from .nodes import Text2LayerExtension
    except Exception:
        logging.exception("Text2Layer could not be loaded")  # ComfyUI itself logs one line without the cause
        raise
    return Text2LayerExtension()
