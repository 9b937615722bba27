"""Say how the zoos of each network and task are trained by default."""

_COOLED = {"schedule": "cosine", "snapshots": 1, "every": 1, "origin": "independent", "common": None, "examples": None}

RECIPES: dict[str, dict[str, dict]] = {
    "cnn": {
        "mnist14": _COOLED | {"runs": 1170, "epochs": 3, "batch": 64, "lr": 5e-3, "weight_decay": 0.05, "examples": 20000},
    },
    "resnet": {
        "mnist14": _COOLED
        | {"runs": 288, "epochs": 1, "batch": 64, "lr": 1e-2, "weight_decay": 0.05, "origin": "shared", "common": 4, "examples": 20000},
        "digits": _COOLED | {"runs": 576, "epochs": 20, "batch": 64, "lr": 5e-3, "weight_decay": 0.1},
    },
    "vit": {
        "mnist14": _COOLED
        | {"runs": 288, "epochs": 1, "batch": 64, "lr": 3e-3, "weight_decay": 0.05, "origin": "shared", "common": 8, "examples": 16384},
    },
}
