"""What frames looked like, on disk: evidence, and recordings to replay."""
