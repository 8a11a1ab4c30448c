"""The disks: what is stored on them, and the space that is left."""
