"""Coming from the original, adding Cresset to a project, and leaving it with a plain Dockerfile."""
