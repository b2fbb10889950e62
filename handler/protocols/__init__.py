"""The protocols that clients speak: one file each, message -> call, result -> body."""
