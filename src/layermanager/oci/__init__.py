"""What the OCI and Docker specifications say of images, as pure functions of texts and documents.

How images are named is in ``reference``, for which machines they are made in ``platform``, and
what their documents hold in ``manifest``. Nothing here reads a file or asks a server.
"""
