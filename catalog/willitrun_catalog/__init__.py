"""Knowledge: model shapes, quantizations, accelerator data sheets, and readers for models on disk or on a hub."""
