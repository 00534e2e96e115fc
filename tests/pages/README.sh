# The page runs commands from the project's own environment, and its Python has the files of one application.
ln -s "$(dirname "$(dirname "$(command -v keyhaul)")")" .venv
ln -s "$SHARED/pki/galicia/sae/sae-uvigo-4.pem" "$SHARED/pki/galicia/sae/sae-uvigo-4.key" .
ln -s "$SHARED/pki/galicia/ca/sae.pem" sae.pem
