"""What a run leaves behind: the folder, tables, figures, the model card, and its way to the Hub."""
