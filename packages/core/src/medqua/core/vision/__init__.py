"""From image bytes to one float image, and from there to VLM inputs."""
