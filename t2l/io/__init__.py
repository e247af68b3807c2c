"""Files: checkpoints and pictures. A reader never sees half a file."""
