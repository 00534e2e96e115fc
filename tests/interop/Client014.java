// One 014 request with Java's own HTTP client and TLS: java Client014.java PROTOCOL CERT KEY CA METHOD URL [BODY]
// prints the status on one line and the body on the next.

import java.io.FileInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.TrustManagerFactory;

public class Client014 {
    private static final char[] NO_PASSWORD = new char[0];

    public static void main(String[] words) throws Exception {
        SSLContext tls = SSLContext.getInstance("TLS");
        tls.init(identity(words[1], words[2]).getKeyManagers(), trust(words[3]).getTrustManagers(), null);
        SSLParameters only = tls.getDefaultSSLParameters();
        only.setProtocols(new String[] {words[0]});
        HttpClient client = HttpClient.newBuilder().sslContext(tls).sslParameters(only).build();
        HttpRequest.BodyPublisher body = words.length > 6
                ? HttpRequest.BodyPublishers.ofString(words[6]) : HttpRequest.BodyPublishers.noBody();
        HttpRequest request = HttpRequest.newBuilder(URI.create(words[5]))
                .header("Content-Type", "application/json").method(words[4], body).build();
        HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode());
        System.out.println(answer.body());
    }

    private static KeyManagerFactory identity(String certificates, String key) throws Exception {
        String pem = Files.readString(Path.of(key));
        byte[] encoded = Base64.getMimeDecoder().decode(pem.replaceAll("-----[A-Z ]+-----", ""));
        KeyStore store = empty();
        store.setKeyEntry("sae", KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(encoded)),
                NO_PASSWORD, read(certificates).toArray(new Certificate[0]));
        KeyManagerFactory factory = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        factory.init(store, NO_PASSWORD);
        return factory;
    }

    private static TrustManagerFactory trust(String anchors) throws Exception {
        KeyStore store = empty();
        for (Certificate anchor : read(anchors)) {
            store.setCertificateEntry("anchor-" + store.size(), anchor);
        }
        TrustManagerFactory factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        factory.init(store);
        return factory;
    }

    private static KeyStore empty() throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, NO_PASSWORD);
        return store;
    }

    private static List<Certificate> read(String file) throws Exception {
        try (FileInputStream stream = new FileInputStream(file)) {
            return new ArrayList<>(CertificateFactory.getInstance("X.509").generateCertificates(stream));
        }
    }
}
