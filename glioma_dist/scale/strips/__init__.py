"""Any module on strips of rows: what each function of PyTorch needs of the other strips."""
