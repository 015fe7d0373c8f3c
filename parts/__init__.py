"""What the lectures are built of: files, model families, data sets, the tiny checkpoint. Nothing here imports a lecture."""
