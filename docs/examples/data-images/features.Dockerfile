# What the Job wrote, as an image for the runs that come after it.
FROM scratch
COPY items/ /items/
