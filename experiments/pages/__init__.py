"""Show kept runs: tables, figures and the pages of results/."""
