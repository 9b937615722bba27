"""Do what the commands of run.py promise. Each file holds one use of a flow."""
