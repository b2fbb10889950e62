"""What models do: one file a task. The table of tasks is `handler.config.TASKS`."""
