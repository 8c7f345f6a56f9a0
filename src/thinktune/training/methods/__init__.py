"""Training methods: each says which batches there are and which weights their tokens get."""
