from suffuse.testing import ModalityContract


class TestModality(ModalityContract):
    modality = "shapes"
