"""Start the autoencoder as a codec of average colours, so that training begins from right colours.

The first three channels of the main path carry red, green and blue through both
halves. Each GroupNorm before an output convolution sees them as pairs (c, -c) beside
a constant pair, so it passes them on nearly unchanged, and SiLU(c) - SiLU(-c) = c.
"""
import torch

PAIRED = 8


def carry(conv, kernel):
    """Let the first three channels pass through this convolution, each on its own."""
    conv.weight[:3] = 0
    conv.bias[:3] = 0
    for i in range(3):
        conv.weight[i, i] = kernel


def pairs(conv, constant, out, gain):
    """Make the pairs in one convolution and read them back in the output convolution."""
    conv.weight[PAIRED:].mul_(0.5)
    conv.weight[:PAIRED] = 0
    conv.bias[:PAIRED] = 0
    conv.bias[6], conv.bias[7] = constant, -constant
    out.weight[:3].mul_(0.1)
    out.weight[:3, :PAIRED] = 0
    out.bias[:3] = 0
    for i in range(3):
        conv.weight[i, i], conv.weight[i + 3, i] = 1, -1
        out.weight[i, i, 1, 1], out.weight[i, i + 3, 1, 1] = gain, -gain


@torch.no_grad()
def linear_start(vae, scale=1.5):
    """Overwrite the weights of the main path; the residual branches stay random beside it."""
    encoder, decoder = vae.encoder, vae.decoder
    centre, half, tent = torch.zeros(3, 3), torch.zeros(3, 3), torch.tensor([0.25, 0.5, 0.25])
    centre[1, 1], half[:2, :2] = 1, 0.25
    for part, blocks in ((encoder, encoder.down_blocks), (decoder, decoder.up_blocks)):
        for resnet in [r for block in blocks for r in block.resnets] + list(part.mid_block.resnets):
            resnet.conv2.weight[:PAIRED] = 0
            resnet.conv2.bias[:PAIRED] = 0
            if resnet.conv_shortcut is not None:
                carry(resnet.conv_shortcut, 1.0)
        out = part.mid_block.attentions[0].to_out[0]
        out.weight[:PAIRED] = 0
        out.bias[:PAIRED] = 0
    carry(encoder.conv_in, centre)
    carry(decoder.conv_in, centre / scale)
    for block in encoder.down_blocks[:-1]:
        carry(block.downsamplers[0].conv, half)
    for block in decoder.up_blocks[:-1]:
        carry(block.upsamplers[0].conv, tent[:, None] * tent)
    pairs(encoder.down_blocks[-1].resnets[0].conv_shortcut, 4.0, encoder.conv_out, scale)
    pairs(decoder.up_blocks[-1].resnets[0].conv_shortcut, 2.0, decoder.conv_out, 1.1)
    encoder.conv_out.weight[4:].mul_(0.1)
    encoder.conv_out.bias[4:] = -4
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[..., None, None])
        conv.bias.zero_()
