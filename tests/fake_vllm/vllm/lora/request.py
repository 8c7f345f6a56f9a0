"""See the package."""


class LoRARequest:
    def __init__(self, name, number, folder):
        self.name, self.number, self.folder = name, number, folder
