"""What each family's config.json means and which tensors its model has, one module per family."""
