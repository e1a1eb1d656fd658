"""What loaders tell of themselves. Nothing here decides anything."""
