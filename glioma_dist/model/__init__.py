"""The U-Net: encoders, the bilinear decoder, starting weights."""
