"""What the project is measured by, beside its peers."""
