// One 014 request with Go's own HTTP client and TLS: go run client014.go PROTOCOL CERT KEY CA METHOD URL [BODY]
// prints the status on one line and the body on the next.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
)

func main() {
	words := os.Args[1:]
	identity, err := tls.LoadX509KeyPair(words[1], words[2])
	check(err)
	anchors, err := os.ReadFile(words[3])
	check(err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(anchors) {
		log.Fatal("no certificate in ", words[3])
	}
	version := map[string]uint16{"TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13}[words[0]]
	settings := &tls.Config{
		Certificates: []tls.Certificate{identity}, RootCAs: pool, MinVersion: version, MaxVersion: version,
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: settings, ForceAttemptHTTP2: true}}
	var body io.Reader
	if len(words) > 6 {
		body = strings.NewReader(words[6])
	}
	request, err := http.NewRequest(words[4], words[5], body)
	check(err)
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	check(err)
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	check(err)
	fmt.Printf("%d\n%s\n", answer.StatusCode, content)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
