"""Other ways to get an ensemble, which users take in place of a flow."""
