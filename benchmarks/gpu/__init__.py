"""The handler behind the real TorchServe on a GPU: is it right, how fast is it, and where does the time go."""
