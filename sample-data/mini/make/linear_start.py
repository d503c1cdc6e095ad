"""Starts that spare both networks the steps that learn the obvious.

The autoencoder starts as a codec of average colours: the first three channels of the
main path carry red, green and blue through both halves. Each GroupNorm before an
output convolution sees them as pairs (c, -c) beside a constant pair, so it passes them
on nearly unchanged, and SiLU(c) - SiLU(-c) = c. The UNet starts by answering its input.
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


@torch.no_grad()
def linear_start_unet(unet, constant=2.0):
    """Let the UNet start by answering with its input, which is nearly the noise when there is much of it.

    Each group of four channels before the last normalisation carries one latent channel as a
    pair (c, -c) beside a constant pair, taken from the skip of the first convolution.
    """
    block = unet.up_blocks[-1]
    resnet, attention, out = block.resnets[-1], block.attentions[-1], unet.conv_out
    skip = resnet.conv_shortcut.weight.shape[1] - unet.conv_in.weight.shape[0]
    unet.conv_in.weight[:4], unet.conv_in.bias[:4] = 0, 0
    for part in (resnet.conv_shortcut, resnet.conv2, attention.proj_out):
        part.weight[:16], part.bias[:16] = 0, 0
    out.weight.mul_(0.3)
    out.weight[:, :16], out.bias[:] = 0, 0
    for i in range(4):
        unet.conv_in.weight[i, i, 1, 1] = 1
        for offset, sign in ((0, 1.0), (1, -1.0)):
            resnet.conv_shortcut.weight[4 * i + offset, skip + i] = sign
            resnet.conv_shortcut.bias[4 * i + 2 + offset] = sign * constant
            out.weight[i, 4 * i + offset, 1, 1] = sign * (constant ** 2 / 2 + 0.5) ** 0.5
