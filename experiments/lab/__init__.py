"""Do the work of a run: check what was asked, fetch data and zoo, draw networks, score them, keep the results."""

import warnings

with warnings.catch_warnings():  # sacred imports pkg_resources, which warns at every start that it is deprecated
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")
    import sacred  # noqa: F401  all other files find it imported
