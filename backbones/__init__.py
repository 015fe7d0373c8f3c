"""What a model family is made of: configuration, vision encoder, positions, checkpoints."""
