# The command on a CPU:  docker build -t vit3d . && docker run --rm -v "$PWD":/data vit3d predict IN -o OUT --bundle head_hippocampus
FROM python:3.13-slim
COPY . /source
# +cpu releases come before those with CUDA libraries
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    --constraint /source/constraints.txt "/source[cpu,dicom,viz]" && rm -r /source
RUN useradd --create-home vit3d
USER vit3d
WORKDIR /data
ENTRYPOINT ["vit3d"]
CMD ["--help"]
