import java.io.FileInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.TrustManagerFactory;

/** Asks twice: {@code URL CA-FILE TLS-VERSION}; prints status, HTTP version, TLS version and length of each reply. */
public class TlsClient {
    public static void main(String[] arguments) throws Exception {
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (FileInputStream file = new FileInputStream(arguments[1])) {
            trusted.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        SSLParameters parameters = new SSLParameters();
        parameters.setProtocols(new String[] {arguments[2]});
        HttpClient client = HttpClient.newBuilder().sslContext(context).sslParameters(parameters).build();
        String body = "{\"text\": \"hi\", \"sampling_params\": {\"max_new_tokens\": 3}}";
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + "/generate"))
            .header("content-type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        for (int count = 0; count < 2; count++) {
            HttpResponse<String> reply = client.send(request, HttpResponse.BodyHandlers.ofString());
            String version = reply.sslSession().get().getProtocol();
            System.out.println(reply.statusCode() + " " + reply.version() + " " + version + " " + !reply.body().isEmpty());
        }
    }
}
