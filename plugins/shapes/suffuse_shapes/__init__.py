"""The modality shapes."""
