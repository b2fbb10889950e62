"""Encoding prompts for diffusion models: only what is needed, exactly, in binary; beside the seed's service."""
