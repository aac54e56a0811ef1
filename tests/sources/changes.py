"""Changes of HDF5 files: each gives a function that takes an open file."""


def drop(*names):
    def change(file):
        for name in names:
            del file[name]

    return change


def put(name, make):
    """Replace a dataset by what `make` gives for its values, attributes kept; None removes it."""

    def change(file):
        values, attributes = make(file[name][()]), dict(file[name].attrs)
        del file[name]
        if values is not None:
            file[name] = values
            file[name].attrs.update(attributes)

    return change


def put_item(name, index, value):
    def change(file):
        file[name][index] = value

    return change
