import math, torch
arrays = "torch"
NF4 = torch.tensor([0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F,
    0xBDBA7871, 0, 0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A, 0x3EE1A4B8, 0x3F1007AB,
    0x3F3913B3, 0x3F800000]).to(torch.uint32).view(torch.float32)
def dequantize_4bit(packed, absmax, *, shape, blocksize=64, dtype=torch.float32):
    n = math.prod(shape)
    codes = torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[:n].long()
    block = torch.arange(n, device=packed.device) // blocksize
    return (NF4.to(packed.device)[codes] * absmax[block]).to(dtype).reshape(shape)
