"""What a removal does: masks, gradients, second-order factors and pulls."""
