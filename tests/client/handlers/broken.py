"""Cannot be loaded."""

raise RuntimeError("this handler never loads")
