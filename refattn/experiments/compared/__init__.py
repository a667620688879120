"""The methods of both papers, and what they compete with, on the same inputs."""
