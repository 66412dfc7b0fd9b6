#!/bin/sh
# keystore.sh PASSWORD-FILE DIRECTORY: run by `mayfly sync` with each set (MAYFLY_SYNC_DIRECTORY). Writes two PKCS#12
# stores with today's algorithms (AES-256, HMAC-SHA-256) and puts each in place by one rename. The password is read from
# its file, never given as an argument.
set -eu
umask 077
password=$1 out=$2
# One resolved set, so that key and certificate belong together whatever happens meanwhile.
set_now=$(readlink -f "$MAYFLY_SYNC_DIRECTORY/current")
mkdir -p "$out"
scratch=$(mktemp -d "$out/.new.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
openssl pkcs12 -export -name mayfly -in "$set_now/tls.crt" -inkey "$set_now/tls.key" \
    -keypbe AES-256-CBC -certpbe AES-256-CBC -macalg SHA256 \
    -passout "file:$password" -out "$scratch/keystore.p12"
# Java counts a certificate in a store as trusted only if it is marked so: keytool marks it, and OpenSSL from 3.2 on.
# A store without the mark looks empty to Java: rather none than that one.
if command -v keytool >/dev/null 2>&1; then
    keytool -importcert -noprompt -storetype PKCS12 -alias mayfly-ca -file "$set_now/ca.crt" \
        -keystore "$scratch/truststore.p12" -storepass:file "$password" >/dev/null 2>&1
elif openssl pkcs12 -help 2>&1 | grep -q -e -jdktrust; then
    openssl pkcs12 -export -nokeys -jdktrust anyExtendedKeyUsage -caname mayfly-ca -in "$set_now/ca.crt" \
        -certpbe AES-256-CBC -macalg SHA256 -passout "file:$password" -out "$scratch/truststore.p12"
else
    echo "keystore.sh: no truststore.p12: it takes keytool, or OpenSSL 3.2" >&2
fi
mv -f "$scratch"/*.p12 "$out/"
