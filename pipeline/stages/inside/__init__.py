"""Programs that run inside a container: mounted for one exec, never part of an image."""
