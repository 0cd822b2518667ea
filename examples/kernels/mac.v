// A multiply-accumulate unit with a saturating register, one product a clock: hardware int8_acc16_saturate.
// With BUG the register is wide and clamped only when it is read: right unless a sum leaves the range and comes back.
module mac #(parameter A_BITS = 9, B_BITS = 9, ACC_BITS = 16) (
    input wire clock,
    input wire load,  // take the start value in place of adding
    input wire signed [A_BITS-1:0] a,
    input wire signed [B_BITS-1:0] b,
    input wire signed [ACC_BITS-1:0] start,
    output wire signed [ACC_BITS-1:0] acc
);
    localparam WIDE = 48;
    localparam signed [WIDE-1:0] HIGH = (48'sd1 <<< (ACC_BITS - 1)) - 1, LOW = -(48'sd1 <<< (ACC_BITS - 1));

    function signed [WIDE-1:0] clamped(input signed [WIDE-1:0] value);
        clamped = value > HIGH ? HIGH : value < LOW ? LOW : value;
    endfunction

    reg signed [WIDE-1:0] register;
    wire signed [WIDE-1:0] sum = register + a * b;
    wire signed [WIDE-1:0] read = clamped(register);
    assign acc = read[ACC_BITS-1:0];

    always @(posedge clock)
        if (load) register <= start;
`ifdef BUG
        else register <= sum;
`else
        else register <= clamped(sum);
`endif
endmodule
