"""The studio, `thinktune demo`: one module a tab, `pool` for models in memory, `guard` for who may ask, `texts` for
both languages. Gradio is imported here and nowhere else."""
