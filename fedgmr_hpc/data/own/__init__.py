"""Data sets that users bring: arrays in an .npz file, images in class folders, a function's arrays.

`arrays` says what arrays must be like; `npz` and `image_folder` are data sets by that name, and
`registered` makes one of a function in a plug-in.
"""
