# A data set as an image: files and nothing else, one layer for each COPY.
FROM scratch
COPY part-0/ /items/
COPY part-1/ /items/
COPY part-2/ /items/
